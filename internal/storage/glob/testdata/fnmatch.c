/* Reads pairs of a pattern and a path, each ended by NUL, and writes 1 for each
   pair that fnmatch(3) matches and 0 for each that it does not. */
#include <fnmatch.h>
#include <locale.h>
#include <stdio.h>

int main(void) {
	char *pattern = NULL, *path = NULL;
	size_t n = 0, m = 0;
	if (setlocale(LC_ALL, "C.UTF-8") == NULL) {
		fputs("this system has no locale C.UTF-8\n", stderr);
		return 2;
	}
	while (getdelim(&pattern, &n, 0, stdin) > 0 && getdelim(&path, &m, 0, stdin) > 0) {
		putchar(fnmatch(pattern, path, FNM_PATHNAME | FNM_PERIOD) == 0 ? '1' : '0');
		fflush(stdout);
	}
	return ferror(stdin) || fflush(stdout) != 0;
}
