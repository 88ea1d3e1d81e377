"""`latephase nqp-real`: the quadratic model of a real network beside its measured training."""
