"""Numbers in words, as the model card and the command line both show them."""


def speed_change(before: float, after: float) -> str:
    """How much faster or slower something became, from the time it took before and after."""
    return f"{before / after:.2f}x faster" if after <= before else f"{after / before:.2f}x slower"
