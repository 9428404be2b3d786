"""An honest, fast fracture classifier on FracAtlas: the nouns that the scripts use.

from fracture import load_model
model = load_model()
model.predict(["film.jpg"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fracture.evaluation.model import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:  # torch is imported when it is needed: --help is to answer soon
    if name not in __all__:
        raise AttributeError(name)
    from fracture.evaluation import model

    return getattr(model, name)
