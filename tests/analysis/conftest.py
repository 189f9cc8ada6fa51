from tests.runs import fixed_run, grown_run, one_thread

__all__ = ["fixed_run", "grown_run", "one_thread"]
