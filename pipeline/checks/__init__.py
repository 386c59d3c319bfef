"""Whether a recipe is right, before anything runs: `recipe.check_recipe` calls one file for each part of the line.

Tasks of `pipeline.training` call the rules of a phase again, of the tokenizer and the critic that were built for it.
"""
