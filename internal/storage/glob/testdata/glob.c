/* Reads patterns, each ended by NUL, and writes for each the paths that glob(3)
   finds below the working directory, each ended by NUL, and one NUL more. */
#include <glob.h>
#include <locale.h>
#include <stdio.h>

int main(void) {
	char *pattern = NULL;
	size_t n = 0;
	if (setlocale(LC_ALL, "C.UTF-8") == NULL) {
		fputs("this system has no locale C.UTF-8\n", stderr);
		return 2;
	}
	while (getdelim(&pattern, &n, 0, stdin) > 0) {
		glob_t found;
		if (glob(pattern, 0, NULL, &found) == 0) {
			for (size_t i = 0; i < found.gl_pathc; i++) {
				fputs(found.gl_pathv[i], stdout);
				putchar(0);
			}
			globfree(&found);
		}
		putchar(0);
		fflush(stdout);
	}
	return ferror(stdin) || ferror(stdout);
}
