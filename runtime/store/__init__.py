"""SQL: tables, transactions and one file per aggregate."""
