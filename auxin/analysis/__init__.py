"""What a run shows: its files and tensors as arrays, and the arrays as figures.

``curves`` reads a run folder, ``similarity`` counts cosines, ``gradcam`` says where a network looks, ``plots`` and
``pictures`` draw, ``style`` is the house style. Nothing here trains or grows.
"""
