"""Model recipes: real trained networks to try edgec on."""

from edgec.models.catalog import load_recipe, recipes
from edgec.models.recipe import Recipe

__all__ = ["Recipe", "load_recipe", "recipes"]
