"""NeuroPrune (Dhurandhar et al., ACL Findings 2024, https://arxiv.org/abs/2404.01306).

`penalties` holds equations 1 and 2, `redundancy` algorithms 2 and 3, `pruner` the loop around them.
"""
