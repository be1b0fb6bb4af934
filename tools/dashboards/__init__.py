"""Writes `streaq/dashboards/*.json`: Grafana dashboards made from `streaq/telemetry/names.py`.

Run it with `make dashboards`. The committed files must be what this package generates; a test
of the stack says so.
"""
