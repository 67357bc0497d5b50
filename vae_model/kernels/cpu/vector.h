/* Vectors of float32, as wide as this CPU has them. */
#include <stddef.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vec get(const float *p) { return *(const vec *)p; }
static inline void put(float *p, vec x) { *(vec *)p = x; }

int omp_get_thread_num(void);
