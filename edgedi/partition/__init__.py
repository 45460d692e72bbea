"""From a network to proven programs: geometry, graph, operators, capture, cost, planners, lowering, simulation."""
