"""Within training: logs of shifts, schedules of dropout, frozen norms, and callbacks for other libraries."""
