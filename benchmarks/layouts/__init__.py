"""Layouts of up to 16 regions on the embedded model: what each method draws of them, and at what cost.

In the manner of COCO-MIG and DenseLayout. The model's vocabulary is closed, so rules read the pictures, not a detector.
"""
