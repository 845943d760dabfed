"""Samplers: noise levels, schedules, steps, and the loop that runs them."""
