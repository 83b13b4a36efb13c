"""How the embedded model was made: pictures that code draws, and two networks trained on them.

Nothing here is needed to render. `python -m training` runs all stages; `MODEL_CARD.md`
beside the weights says what came out.
"""
