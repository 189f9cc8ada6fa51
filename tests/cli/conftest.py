from tests.runs import fixed_run, grown_run

__all__ = ["fixed_run", "grown_run"]
