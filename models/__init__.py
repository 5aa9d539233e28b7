"""Provide model recipes: real trained networks to try edgec on."""

from edgec.models.catalog import load_model_recipe, recipes
from edgec.models.model_recipe import ModelRecipe

__all__ = ["ModelRecipe", "load_model_recipe", "recipes"]
