"""Trainings that studies compare: what they are, how they are run and measured, and what is made of their records."""
