"""What matters, and cutting in one call: criteria, regularisers, absorption, statistics, prune."""

from jaxslim.slim import criteria as criteria
