from matplotlib import image

from stepdistill_jax.bench import figure

PANELS = {"loss": {"ours": [[3.0, 2.0, 1.0]], "recipe": [[3.0, 2.1, 1.0]]}}


def test_draws_curves_and_their_differences(tmp_path):
    figure.draw(tmp_path / "curves.png", "one", PANELS)
    # A difference of 0 has no place on the log scale, and is left out.
    figure.draw(tmp_path / "both.png", "one", PANELS, {"loss": [0.0, 0.05, 0.0]}, limit=0.1)
    one, both = (image.imread(tmp_path / name) for name in ("curves.png", "both.png"))
    assert both.shape[0] > one.shape[0]
    assert both.shape[1] == one.shape[1]
    # Something is drawn besides the white ground.
    assert all((picture[..., :3] < 0.5).any() for picture in (one, both))
