/* Forgets one instruction set, so that the kernels can be included for the next. */
#undef vf
#undef vi
#undef INLINE
#undef ROUND
#undef WIDTH
#undef TARGET
#undef NAME
