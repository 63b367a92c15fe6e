"""Compare custom_resources.yaml, and the objects of the overlays, with published CustomResourceDefinitions.

    make deploy-check CRDS=DIR
    python tests/deploy/published.py CRD.yaml|DIR ...

The files, or those of a folder and the folders below it, are what the table names under `source`. Says what differs,
and exits with 1 if anything does or a kind has no file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from deploy.custom_resources import Kind, faults, kind_of, schemas
from deploy.manifests import NO_RENDERER, OVERLAYS, read, rendered, renderer
from foreign_parts import not_run

Schema = dict[str, Any]
# Where a schema says one of these, ours must say the same; bounds that ours leaves out would let more through.
WORDS = ("type", "enum", "pattern", "minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "required")


def published(files: list[Path]) -> dict[Kind, Schema]:
    """The schema of a whole object by its kind, for each served version."""
    found = {}
    for definition in (one for file in files for one in read(file) if one["kind"] == "CustomResourceDefinition"):
        spec = definition["spec"]
        for version in spec["versions"]:
            kind = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            found[kind] = version["schema"]["openAPIV3Schema"]
    return found


def differences(ours: Schema, theirs: Schema, at: str = "") -> Iterator[str]:
    """What ours says otherwise than theirs, or says of a field that theirs doesn't have."""
    for word in WORDS:
        if ours.get(word) != theirs.get(word) and "anyOf" not in theirs:
            yield f"{at}: {word} is {theirs.get(word)!r} there and {ours.get(word)!r} here"
    for name, schema in ours.get("properties", {}).items():
        if name not in theirs.get("properties", {}):
            yield f"{at}.{name}: no such field there"
        else:
            yield from differences(schema, theirs["properties"][name], f"{at}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(ours.get(word), dict):
            yield from differences(ours[word], theirs.get(word, {}), f"{at}.{word}")


def strict(schema: Schema) -> Schema:
    """Unknown fields fail, as `kubectl apply --validate=strict` has it."""
    made = {word: _each(value) for word, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def _each(value: Any) -> Any:
    if isinstance(value, dict):
        return strict(value)
    return [_each(one) for one in value] if isinstance(value, list) else value


def main(paths: list[Path]) -> int:
    absent = [str(path) for path in paths if not path.exists()]
    if absent or not paths:
        print(f"no file or folder with definitions: {', '.join(absent) or 'name one'}", file=sys.stderr)
        return 2
    if renderer() is None:
        return not_run("published definitions", NO_RENDERER)
    files = [file for path in paths for file in (sorted(path.rglob("*.yaml")) if path.is_dir() else [path])]
    theirs, ours = published(files), schemas()
    said: list[str] = []
    checked = 0
    for kind, schema in ours.items():
        if kind not in theirs:
            said.append(f"{kind}: no file has it")
        else:
            said += differences(schema["properties"]["spec"], theirs[kind]["properties"]["spec"], kind[1])
    for overlay in OVERLAYS:
        for one in rendered(overlay):
            if kind_of(one) in theirs:
                checked += 1
                schema = strict({**theirs[kind_of(one)]})
                schema["properties"]["metadata"] = {"type": "object"}
                said += [f"{overlay}: {fault}" for fault in faults(one, schema)]
    print("\n".join(said) or f"{len(ours)} kinds and {checked} objects, as published")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
