"""The five original nodes, step by step as they were, for results that agree with theirs."""
