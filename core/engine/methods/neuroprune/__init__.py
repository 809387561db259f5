"""NeuroPrune (Dhurandhar et al., ACL Findings 2024, https://arxiv.org/abs/2404.01306).

`penalties` holds equations 1 and 2, `redundancy` algorithms 2 and 3, which `compensation` extends; `criterion` is the
form that meets a target, `faithful` the one that was published.
"""
