"""Catalogue of losses. A file here has a pure function and a thin class `Loss`.

`Loss(**options)` is an `nn.Module` whose `forward(student_logits, teacher_logits, targets) -> scalar tensor` is the mean
over the batch; `needs_teacher` says whether `teacher_logits` may be None. The scale of a loss never depends on which
other terms are active. `targets` are class probabilities [N, K] (one-hot, smoothed or mixed labels).
"""
