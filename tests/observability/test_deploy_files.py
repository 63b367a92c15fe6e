"""What is deployed beside the server: the rules under promtool, the dashboard under Grafana's own schema."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from starlette.routing import Route

from conformance.environments import PartMissing, Suite
from foreign_parts import lacking
from livery.api.app import ROUTERS
from livery.api.boundary import PROBES
from livery_loadtest.peers import EnvironmentFailed
from observability.board import BOARD, board, queries
from observability.parts import DEPLOY, program

RULES = DEPLOY / "prometheus" / "rules.yml"
SDK = "grafana-foundation-sdk==1769699998!10.1.0"
HERE = Path(__file__).parent


def ran(*command: str, folder: Path = HERE) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.observability
def test_promtool_takes_the_rules_and_the_scrape_configuration(tmp_path: Path) -> None:
    promtool = program("promtool")
    assert "19 rules found" in ran(promtool, "check", "rules", str(RULES))
    for file in (DEPLOY / "prometheus").iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "metrics-key").write_text("secret")
    assert "SUCCESS" in ran(promtool, "check", "config", "prometheus.yml", folder=tmp_path)


@pytest.mark.observability
def test_alerts_fire_on_what_they_are_for(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path)
    shutil.copy(HERE / "rules_test.yml", tmp_path)
    assert "SUCCESS" in ran(program("promtool"), "test", "rules", "rules_test.yml", folder=tmp_path)


@pytest.mark.observability
def test_grafanas_schema_knows_all_of_the_dashboard(tmp_path: Path) -> None:
    suite = Suite("grafana", "", "", python=(SDK,))
    try:
        suite.ensure(Console(stderr=True))
    except (PartMissing, EnvironmentFailed) as missing:
        lacking(f"{SDK} can't be had: {missing}")
    python = str(suite.folder / "bin" / "python")
    ran(python, "board_check.py", str(BOARD))
    (tmp_path / "typo.json").write_text(BOARD.read_text().replace('"gridPos"', '"gridPosition"', 1))
    typo = [python, "board_check.py", str(tmp_path / "typo.json")]
    assert subprocess.run(typo, cwd=HERE, capture_output=True, timeout=60, check=False).returncode == 1


def test_every_alert_has_a_runbook_and_a_unit_test() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    tested = (HERE / "rules_test.yml").read_text()
    assert len(alerts) == 13
    for alert in alerts:
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert alert["alert"] in tested


def test_what_asks_every_few_seconds_is_no_part_of_the_share_of_errors() -> None:
    (board_query,) = (promql for title, promql in queries() if title == "5xx answers")
    told = re.findall(r'route!~"([^"]*)"', RULES.read_text() + board_query)
    assert (len(told), len(set(told))) == (4, 1), "the rule and the board, above and below the line"
    left_out = {
        (route.path, purpose)
        for router, purpose in ROUTERS
        for route in router.routes
        if isinstance(route, Route) and re.fullmatch(told[0], route.path)
    }
    asked = {"/load", "/version", "/v1/status", "/v1/models"}  # by routers, the console and `livery top`
    probes = {
        (route.path, purpose)
        for router, purpose in ROUTERS
        for route in router.routes
        if isinstance(route, Route) and purpose in PROBES
    }
    assert left_out == probes | {(path, "ask") for path in asked}


def test_panels_have_their_own_places_and_the_chosen_data_source() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
    assert max(x for x, _ in taken) == 23
    names = {name for _, promql in queries() for name in re.findall(r"\b(?:livery_|vllm:)\w+", promql)}
    assert len(names) > 40
    assert "/work" not in json.dumps(board())
