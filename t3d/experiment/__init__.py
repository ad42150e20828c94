"""Recipes and what they run: plan, rollouts, students in rounds, evaluations, reports."""
