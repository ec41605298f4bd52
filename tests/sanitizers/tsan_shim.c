/* Three functions that the compiler's ThreadSanitizer calls and gcc's runtime does not have under these names. gcc's runtime intercepts
 * the ones that they call, so nothing is missed. */
#include <stddef.h>
#include <string.h>

void *__tsan_memcpy(void *to, const void *from, size_t count) { return memcpy(to, from, count); }
void *__tsan_memmove(void *to, const void *from, size_t count) { return memmove(to, from, count); }
void *__tsan_memset(void *to, int byte, size_t count) { return memset(to, byte, count); }
