"""Which images stand for all of a set."""


def evenly_spaced(n: int, most: int) -> list[int]:
    """At most so many of n places, evenly spaced and none twice; files sorted by class are so shared among classes."""
    chosen = min(n, most)
    return [i * n // chosen for i in range(chosen)]
