"""YAML files of settings that a user or another program may have written: read, or refused in one line with the name.

settings = read_yaml(Path("stage.yaml"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from units.runtime.files.json_files import FileError, FileReason, read_text

MERGE = "tag:yaml.org,2002:merge"  # of `<<`, which may stand in a mapping twice


class _Loader(yaml.SafeLoader):
    """Refuses a name that a mapping has twice; YAML forbids it, and the usual loader keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                    if key.value in names:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"{key.value[:60]!r} is given twice", key.start_mark
                        )
                    names.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; none in an empty one.

    Raises:
        OSError: it cannot be read.
        FileError: it is not UTF-8 or not YAML, has a name twice, or holds no `name: value` lines.
    """
    text = read_text(path)
    try:
        found = yaml.load(text, _Loader)  # a safe loader
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise FileError(FileReason.INVALID_FIELD, f"{path}: not YAML ({reason or type(error).__name__})") from error
    if found is not None and not isinstance(found, dict):
        raise FileError(FileReason.INVALID_FIELD, f"{path}: no settings; each is a line `name: value`")
    return {str(name): value for name, value in (found or {}).items()}
