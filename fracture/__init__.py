"""An honest, fast fracture classifier on FracAtlas: the nouns that the three scripts use."""
