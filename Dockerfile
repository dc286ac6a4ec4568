# One image for every process of a deployment; compose.yaml says which command each service runs.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE beat_schedule.py ./
COPY runtime runtime
COPY tasks tasks
RUN python -m venv /opt/agent-runtime \
 && /opt/agent-runtime/bin/python -m pip install --no-cache-dir --constraint constraints.txt ".[flower]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/agent-runtime --create-home agent-runtime
COPY --from=build /opt/agent-runtime /opt/agent-runtime
ENV PATH=/opt/agent-runtime/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AGENT_RUNTIME_WORKSPACE=/workspace/workspace.yaml \
    AGENT_RUNTIME_STATE_DIR=/var/lib/agent-runtime
USER 10001
# Not /workspace: Celery imports from the working directory, and a tasks.py there would shadow ours.
WORKDIR /var/lib/agent-runtime
CMD ["agent-runtime", "worker"]
