"""Serving: every learned task of one backbone behind one HTTP endpoint. Needs the extra `serve`."""

from continual.serve.application import POLL, application
from continual.serve.desk import Limits
from continual.serve.recipe import Recipe
from continual.serve.run import is_local, listening, serve
from continual.serve.serving import Serving

__all__ = ["POLL", "Limits", "Recipe", "Serving", "application", "is_local", "listening", "serve"]
