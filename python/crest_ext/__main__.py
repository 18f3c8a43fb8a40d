"""The `crest` command, which is also `python -m crest_ext`."""

from __future__ import annotations

import sys

NEEDED = ("typer", "rich", "yaml", "safetensors", "sklearn")


def main() -> None:
    try:
        from crest_ext.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        sys.exit(f'crest: the command line needs {error.name}: pip install "crest_ext[cli]"')
    app(prog_name="crest")


if __name__ == "__main__":
    main()
