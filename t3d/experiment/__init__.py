"""Recipes and their route: plan, rollouts, students in rounds, evaluations, reports."""
