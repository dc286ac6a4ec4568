"""Model providers over HTTP: two wire protocols, their tool names, event streams and errors."""
