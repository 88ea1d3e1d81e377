"""`latephase reproduce`: the paper's tables, what is published beside what was measured."""
