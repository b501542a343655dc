"""Recipes: compression as an ordered list that can be written down, run and resumed."""

from tfcompress.recipes.recipe import Recipe as Recipe
from tfcompress.recipes.run import RecipeResult as RecipeResult
