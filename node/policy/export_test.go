// SPDX-License-Identifier: Apache-2.0

package policy

// FilterSlots lets tests ask more than a filter remembers.
const FilterSlots = filterSlots
