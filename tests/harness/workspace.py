"""A workspace folder with the ledger tools."""

import shutil
from pathlib import Path

TOOLS = (
    "ledger:read",
    "ledger:put",
    "ledger:pay",
    "ledger:raise",
    "ledger:wrong-shape",
    "ledger:print",
    "ledger:fork",
    "ledger:exit",
    "ledger:hang",
    "ledger:hang-once",
    "ledger:big",
)

_FILE = """\
agent_runtime:
  default_model: operations
  models:
    operations: {{provider: openai_compatible, model: demo-scripted, api_key_env: TEST_MODEL_KEY,
                 base_url: "{base_url}"}}
  intents:
    bookkeeping:
      description: Keep the books.
      allow_tools: [{tools}]
      approval_required_tools: ["ledger:guarded"]
  limits: {{max_turns_per_session: 40, max_tool_calls_per_session: 40, max_input_bytes: 262144}}
  tools:
    modules: [ledger_tools]
security:
  allowed_scopes:
    - {{type: network, posture: allowlist, allowlist_entries: ["{address}"]}}
policies:
  default_decision: deny
  rules:
    - id: no-secrets
      decision: deny
      reason: secrets are not written down
      when:
        all:
          - {{tool_name_equals: "ledger:put"}}
          - {{argument_equals: {{path: [name], value: secret}}}}
"""


def write_workspace(folder: Path, base_url: str) -> Path:
    """Write ``workspace.yaml`` and the tools beside it; return the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("ledger_tools.py"), folder / "ledger_tools.py")
    address = base_url.removeprefix("http://").split("/")[0]
    path = folder / "workspace.yaml"
    tools = ", ".join(f'"{name}"' for name in TOOLS)
    path.write_text(_FILE.format(base_url=base_url, address=address, tools=tools), encoding="utf-8")
    return path
