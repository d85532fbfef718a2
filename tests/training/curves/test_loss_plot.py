from florence2.training.curves.loss_plot import (
    COLOURS,
    HEIGHT,
    LOSS_HEIGHT,
    METRIC_COLOUR,
    TRAINING_COLOUR,
    WIDTH,
    draw_plot,
)

ROWS = [{"step": n, "loss": 1 / n} for n in range(1, 9)] + [
    {"step": 4, "eval_loss": 0.5},
    {"step": 8, "eval_loss": 0.4},
]


def test_plot_has_both_losses() -> None:
    colours = {colour for _, colour in draw_plot(ROWS).getcolors(1 << 20)}
    assert set(COLOURS.values()) <= colours
    assert COLOURS["eval_loss"] not in {colour for _, colour in draw_plot(ROWS[:8]).getcolors(1 << 20)}


def test_line_falls_with_the_loss() -> None:
    image = draw_plot(ROWS[:8])
    blue = [
        (x, y) for x in range(image.width) for y in range(90, image.height) if image.getpixel((x, y)) == COLOURS["loss"]
    ]
    assert min(blue)[1] < max(blue)[1]  # the first point is above the last


def test_metrics_have_panels_below_the_losses() -> None:
    scores = [{"step": n, "eval_exact_match": n / 9, "eval_od_f1": n / 8, "eval_runtime": 3.0} for n in (4, 8)]
    rates = [{"step": n, "learning_rate": 1e-4 / n} for n in range(1, 9)]
    losses, two, three = draw_plot(ROWS), draw_plot(ROWS + scores), draw_plot(ROWS + scores + rates)
    assert losses.height == LOSS_HEIGHT
    assert two.height == LOSS_HEIGHT + HEIGHT
    assert three.height == LOSS_HEIGHT + 2 * HEIGHT
    left, right = (
        {colour for _, colour in two.crop((x, LOSS_HEIGHT, x + WIDTH // 2, two.height)).getcolors(1 << 20)}
        for x in (0, WIDTH // 2)
    )
    assert METRIC_COLOUR in left
    assert METRIC_COLOUR in right
    assert TRAINING_COLOUR in {colour for _, colour in three.getcolors(1 << 20)}


def test_values_that_are_not_finite_are_skipped() -> None:
    assert draw_plot([]) is None
    assert draw_plot([{"step": 1, "loss": 2.0}]) is None
    assert draw_plot([{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}, {"loss": 1.0}]) is None
    assert draw_plot([{"step": 1, "loss": 2.0}, {"step": 1, "loss": 2.0}]) is not None
