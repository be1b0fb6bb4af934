# The worker image: `docker build -t streaq .`, then `docker run streaq run module:worker`.
FROM python:3.13.7-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md ./
COPY streaq ./streaq
# `streaq demo` runs it, so it is a part of the wheel.
COPY examples/orders.py ./examples/
RUN python -m venv /opt/streaq \
    && /opt/streaq/bin/pip install --no-cache-dir ".[fast,otlp]"

FROM python:3.13.7-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home streaq
COPY --from=build /opt/streaq /opt/streaq
WORKDIR /app
COPY examples/*.py ./
ENV PATH=/opt/streaq/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 9100
# /livez fails when due work exists and this worker has neither polled nor started anything.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9100/livez', timeout=2)"]
ENTRYPOINT ["streaq"]
CMD ["--help"]
