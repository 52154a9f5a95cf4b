"""Pictures of results, by matplotlib (the extra `plots`): ``report → data of the picture → figure → file``.

style           sizes, colours and the style of each method; panels, legends, notes and files
data            what the pictures show, as DataFrames made from a report
lines           learning curves, and curves over a setting
bars            bars, layer pairs, gaps to the teacher, relative improvements
comparisons     accuracy against cost, published against measured, critical differences
heatmaps        attention, class correlations, similarity of layers, confusion
samples         t-SNE of embeddings, Grad-CAM, calibration
kinds           the kinds of pictures by name, and their options
papers          the papers' figures
"""
