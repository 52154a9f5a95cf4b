"""Pictures of results, by matplotlib (the extra `plots`): ``report → data of the picture → figure → file``.

style           the sheet (style.yaml): sizes; each method's colour, line and marker; panels, legends, notes, files
data            what pictures show, as DataFrames made from a report; ``views`` asks finished networks
lines           learning curves, and curves over a setting
bars            bars, layer pairs, gaps to the teacher, relative improvements
comparisons     accuracy against cost, published against measured, critical differences
heatmaps        attention, class correlations, similarity of layers, confusion
samples         t-SNE of embeddings, Grad-CAM, calibration
kinds           all of them by name
gallery         those for a report's page
"""
