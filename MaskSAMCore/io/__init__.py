"""Files: the only place that touches SimpleITK, pydicom and highdicom."""
