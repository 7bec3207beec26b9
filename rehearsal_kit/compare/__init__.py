"""`rehearsal-kit compare`: all strategies on the same stream, and what each of them costs."""
