"""The rules of prometheus/rules.yml as the Prometheus operator takes them.

    python tests/deploy/operator_rules.py --write

The file for Prometheus is the source; kustomize can't put one file's structure into another's, so this writes a copy.
"""

from __future__ import annotations

import sys
from pathlib import Path

DEPLOY = Path(__file__).parent.parent.parent / "server" / "deploy"
SOURCE = DEPLOY / "prometheus" / "rules.yml"
TARGET = DEPLOY / "kubernetes" / "components" / "monitoring" / "rules.yaml"
COMMAND = "python tests/deploy/operator_rules.py --write"
HEAD = f"""\
# Made of ../../../prometheus/rules.yml by: {COMMAND}
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: livery
spec:
"""


def operator_rules() -> str:
    """The text of the PrometheusRule."""
    lines = [line for line in SOURCE.read_text().splitlines() if not line.startswith("#")]
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in lines)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"say: {COMMAND}")
    TARGET.write_text(operator_rules())
