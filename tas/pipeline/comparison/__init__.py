"""The parts of `tas compare`: methods, plan, jobs, worker processes, tables, plots."""
