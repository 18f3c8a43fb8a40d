"""The `crest` command: crest train | compress | eval | inspect | demo | doctor."""

from crest_ext.cli.app import app

__all__ = ["app"]
