import numpy as np

from qpnuclei.training.student.labellers import MeanOfModels


class _Constant:
    def __init__(self, attention: float, centre: float) -> None:
        self._maps = attention, centre

    def predict_image(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        attention, centre = (np.full(rgb.shape[:2], value, np.float32) for value in self._maps)
        return attention, centre


def test_the_maps_are_means() -> None:
    models = [_Constant(0.25, 0.5), _Constant(1.0, 0.0), _Constant(0.25, 1.0)]

    attention, centre = MeanOfModels(models).predict_image(np.zeros((3, 4, 3), np.uint8))

    assert centre is not None
    assert attention.dtype == centre.dtype == np.float32
    assert np.array_equal(attention, np.full((3, 4), 0.5))
    assert np.array_equal(centre, np.full((3, 4), 0.5))
