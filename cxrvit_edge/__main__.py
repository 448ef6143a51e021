"""python -m cxrvit_edge"""

from cxrvit_edge.cli import main

main()
